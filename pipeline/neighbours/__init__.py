"""The FAISS index of a bank and each prompt's nearest crops."""
