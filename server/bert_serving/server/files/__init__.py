"""bert-serving-encode: the texts of files in, a file of vectors out, of any size."""
