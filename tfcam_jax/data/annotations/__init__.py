"""Human annotations in the forms people keep: `formats` knows, by their files' suffixes, who reads which.

A map of one image is a picture or an NPY array (`decode`). A table holds many images' marks: `csv_table` has a row per
box, polygon or fixation, `json_table` the same as a list of objects, or COCO's, with run-length encodings (`rle`).
A new table is a module with `read(path)` and a line in `formats`.
"""
