// Sphinx fetches each page that it found, for the lines about the words; a page from file:// may not fetch, and needs none.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
