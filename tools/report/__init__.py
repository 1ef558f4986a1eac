"""The report: one HTML file that shows what a run came to, opens offline and prints.

    run or survey --document--> Document --page--> HTML

`document` puts the sections together, `plans` and `layers` make them, `page` knows HTML.
"""

from __future__ import annotations
