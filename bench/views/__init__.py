"""How a result is shown: tables on a terminal, pictures, the HTML page, the README's section."""
