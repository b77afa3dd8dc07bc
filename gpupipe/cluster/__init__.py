"""Engines on many machines: the segments of renders, drawn by whoever is free, on the nodes of a Ray cluster; and
servers on them, behind one router.

    render  a render, and many jobs, on a cluster           run       their engines, and what becomes of each job
    board   which engine takes which segment next,          job       one job: what it needs, what is there of it
            and what is tried again                         inputs    the files that it needs
    node    an engine on a node, and what it can be asked   store     files that a node was sent, by what they hold
    work    what is sent: plain data                        transfer  files to a node, and segments from it
    facts   what the nodes must have in common              stats     what each node did
    fleet   the cluster, engines as actors (`actor`),       shares    which engines there are to be
            what is lost                                    crew      engines, and what each has been told
                                                            begun     a job as a node has it

    serving   a router whose replicas are on nodes          berths    which share of which node each has
    replicas  servers, held by actors (`server`)

A segment is drawn like one of `gpupipe render --segments`, and put with the parts of its output like those: so the
joined file is the same, byte for byte, whoever drew which. May touch files, and Ray in `fleet` and `replicas`; how a
frame is drawn, nothing here knows. The extra `gpupipe[ray]` brings Ray. This file imports nothing.
"""
