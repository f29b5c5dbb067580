from clearclip.cli.main import main

main()
