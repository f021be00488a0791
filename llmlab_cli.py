from llmlab.__main__ import main

main()
