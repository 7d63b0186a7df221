"""How `make docs` builds the site: Sphinx reads the pages as they are, MyST is their Markdown, furo their look.

Sphinx, since the API page comes from docstrings of a typed package, links are checked, and a warning can fail
the build; all three projects are kept. A page is written for the repository browser first: plain Markdown,
tables and relative links, no directive of Sphinx outside index.md and api.md.
"""

import collegium


project = "collegium"
author = "the collegium contributors"
copyright = "the collegium contributors, Apache-2.0"
version = release = collegium.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
default_role = "code"  # docstrings have Markdown's single backticks
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"collegium {version}"
html_copy_source = False

myst_heading_anchors = 4  # links to headings, as the repository browser makes them
suppress_warnings = ["myst.header"]  # some pages go from a title to its third level

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of a dataclass are described once
