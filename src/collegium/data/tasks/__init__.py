"""Five tasks as text to be completed: sentiment, paraphrase, NER, questions, summarization. No torch here."""
