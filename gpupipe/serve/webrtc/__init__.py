"""WebRTC, by aiortc: a character that is there, listens, and speaks.

routes      offers, sound that is pushed, numbers           peers       who is connected, and who has gone
ice         where a peer is, and where the server is        peer        a connection, its seat, what is said
microphone  a track → utterances                            ear         where in it somebody speaks
utterance   a talk's sound and pictures, until their time   stage       what each tick shows, in step
tracks      pictures and sound as aiortc takes them         sound       a request's body → samples
"""
