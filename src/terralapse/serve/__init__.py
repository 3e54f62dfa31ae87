"""The map in a browser: an HTTP server over finished results, and the page that it shows.

It reads folders that other commands have written and changes nothing. What a result says is made by
`terralapse.products`; here it is only handed out, tile by tile and page by page.
"""
