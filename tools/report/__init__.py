"""The report: one HTML file that shows what a run came to, opens offline and prints.

    run or survey --document--> Document --page--> HTML

`document` puts the sections together, `parts` are what they are made of, `drawing` is how figures
look, `page` knows HTML; every other file makes one or two sections.
"""

from __future__ import annotations
