"""The web page of `clearclip app`.

`limits` is what it takes, `studio` asks the network, `answers` keeps scores and makes labels and files of them, `markup`
writes what is shown: none of them knows Gradio. `page` lays it out.
"""
