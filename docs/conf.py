"""Settings of the documentation site: ``make docs`` builds it with Sphinx, MyST and furo."""

from importlib.metadata import version as installed

project = "lmablate"
author = "the lmablate authors"
version = release = installed("lmablate")
copyright = "the lmablate authors, Apache-2.0"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
highlight_language = "text"

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
html_title = "lmablate"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"

# Docstrings name arguments in single backticks and code in double ones: both are code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_use_legacy_class_based = False
python_use_unqualified_type_names = True
