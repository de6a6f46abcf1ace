"""Images and volumes as an encoder sees them: the evaluation view, random views, and what decides their draws."""
