"""How is a picture read?  Its caption, the same beside a file and in the page."""
