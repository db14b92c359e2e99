"""One question about one or several pictures: `asked` answers it, `drawing` shows what was kept of them."""
