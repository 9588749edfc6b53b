"""The crash campaign: a writer of every verb is killed, and what is found afterwards is compared with a journal.

`model.py` is what was acknowledged, `records.py` what a record holds, `work.py` the writer, `verify.py` the
comparison, `cut.py` what a power cut leaves of the files, `campaign.py` the killing, `__main__.py` the
command: `make crash`.
"""
