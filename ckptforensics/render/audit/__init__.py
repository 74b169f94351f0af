"""An audit in all its forms: for people, code hosting, inventories and signers."""
