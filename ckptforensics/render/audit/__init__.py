"""An audit in the forms in which it is handed on: for people, code hosting, inventories, signers."""
