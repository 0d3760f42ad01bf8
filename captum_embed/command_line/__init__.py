"""``captum-embed``: maps, pages and weight banks from the command line."""
