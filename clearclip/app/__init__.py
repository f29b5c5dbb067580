"""The web page of `clearclip app`.

`limits` is what it takes, `studio` asks the network, `answers` keeps what it said and makes labels and files of it,
`markup` writes what is shown: none of them knows Gradio. `page` lays it out.
"""
