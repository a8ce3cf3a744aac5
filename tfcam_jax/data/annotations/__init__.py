"""Human annotations in the forms people keep, one file a format.

    arrays        NPY; other pictures are `decode.decode_map`'s
    csv_table     a row per box, polygon or fixation
    json_table    the same as a list of objects
    coco          COCO's boxes, polygons and run-length encodings
    rle           the last of these, decoded

`formats` knows them all by their files' suffixes. A new table is a module with `read(path)` and a line there, or, for
another kind of JSON, with `fits(content)` and `entries(content)`.
"""
