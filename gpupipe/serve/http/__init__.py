"""HTTP: characters, videos while they are rendered, jobs, what a server tells of itself, and its page.

app         every route, and what stands around them     guard     who may ask, what every answer says, and counting
video       sound in, a video out while it is rendered   uploads   a request's body on its way to a file
jobs        renders to files                             errors    what went wrong, as a status and one line
characters  who is there, and how busy the server is     page      the files of the page at `/`
openapi     all of it, as programs read it               protocol  uvicorn's own, with limits of time and size
query       what stands behind a request's `?`
"""
