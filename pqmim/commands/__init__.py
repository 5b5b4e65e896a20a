"""What the verbs of ``pqmim`` on images do.

images.py    compress, decompress, complete: one file, or many    the verbs
many.py      many files, several at a time, on after a bad one    jobs_of, each
files.py     an input's bytes; an output, whole or not at all     read, Output
formats.py   image files to pixels and back                       read_pixels, image_file
weights.py   the weights that a file names                        Shelf
errors.py    one line for a person                                sentence, device_of
info.py      what a file is                                       info
jobs.py      the batch jobs by their names                        main, clash
"""
