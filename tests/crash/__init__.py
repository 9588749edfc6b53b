"""The crash campaign: a writer of every verb is killed, and what is found afterwards is compared with a journal.

`model.py` is what was acknowledged, `records.py` what a record holds. `work.py` is the writer, `closed.py` what it does with
databases that nobody serves: `damage.py` is what it damages there, `old.py` the database of the first format. `verify.py` is the
comparison, `answers.py` that of queries. `campaign.py` is the killing, of processes that `child.py` forks, by `striking.py`;
`aiming.py` says where; `folders.py` copies what was left; `cut.py` what a power cut leaves of the files; `tally.py` what was seen; `__main__.py` the command: `make crash`.
"""
