"""What do the pictures of a page show?  From the values of an experiment to plotly's traces.

The same values as `figures` draws; nothing is read, decided or written here, and nothing is left to
the page to compute.
"""
