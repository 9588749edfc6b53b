"""Processes that answer reads on the port of the server, beside the one process that writes.

Python runs one thread of a process at a time, so one process answers no more queries than about one core can
encode and decode. LMDB files and indexes may be read by many processes at once: each of these opens the
database read-only, follows the commits of the writer before each read, and listens on the same port
(SO_REUSEPORT: the kernel deals out connections). What is no read it passes on to the writer.

| file | what it does |
|---|---|
| `keeper.py` | in the writer: starts them, starts those anew that die, tells them what to do |
| `process.py` | such a process: `python -m vecdb_server.readers.process` |
| `passing.py` | there: hands calls that are no reads to the writer, as bytes |
| `forwarded.py` | in the writer: whose call it is that came this way |
| `channel.py` | what the two say to each other |
"""
