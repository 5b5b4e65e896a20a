"""What the verbs of ``pqmim`` on images do.

images.py    compress, decompress, complete: one file, or many    the verbs
many.py      many files, several at a time, on after a bad one    each(jobs, work, workers)
files.py     an input's bytes; an output, whole or not at all     read, Output
info.py      what a file is                                       info
"""
