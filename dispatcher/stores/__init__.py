"""Durable queues behind one Protocol, `dispatcher.stores.base.Store`."""
