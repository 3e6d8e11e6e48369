"""The live view of a worker's metrics: `scrape` reads them, `frame` computes, `screen` draws."""
