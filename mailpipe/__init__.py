"""
A programmable SMTP gateway: receiver, chain of processors, batching Channel, storages.
"""
