"""Data: sources (files and folders) -> documents -> tokens.

paths.py       whether data paths exist, and what their suffixes say
sources.py     which files a path stands for, and which are passed over, with the reason
hub.py         which files a data set of the hub consists of
saved.py       which files a folder of `datasets.save_to_disk` consists of
kinds.py       `Source`: a file, its kind (by content and suffix) and how it is opened
formats.py     `texts`: the documents of a source, one reader per kind
json_texts.py, json_array.py, csv_texts.py, columns.py    the readers
bars.py        the progress bars of `datasets`
mixture.py     data with shares
documents.py   `read_documents`: all documents as a `datasets.Dataset`
chats.py       `hold_chats`, `read_chats`: rows of messages; chat_tokens.py writes them by a template
tokens.py      `TokenStream`: all documents as one sequence of token ids; `tokenise` makes it
encoding.py    texts to token ids
flat.py        the file that such a sequence is mapped from
once.py        `once_per_node`: one process of a launch works, the others get its result
inspection.py  `inspect`: documents, their lengths, and what a train length would use
prompts.py     the token ids of a prompt, and the check that the model has embedding rows for them
hashes.py      `data_hashes`, `data_identity`: what a record says about its data
"""
