"""HTTP dialects: one file for each family of routes that another server has made popular.

The files do not import each other. To remove a dialect, delete its file and every use of its name in app.py.
"""
