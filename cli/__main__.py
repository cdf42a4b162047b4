"""`python -m videosafety`."""

from videosafety.main import app

app()
