"""HTTP dialects: one file for each family of routes that another server has made popular.

They do not import each other. To drop one, delete its file and the lines in app.py that name it.
"""
