"""HTTP dialects: each file adds the routes of another server or API, such as OpenAI's.

The files do not import each other. To remove a dialect, delete its file and every use of its name in app.py.
"""
