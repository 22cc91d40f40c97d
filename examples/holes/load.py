import json


def load(path):
    try:
        with open(path) as f:
            
    except FileNotFoundError:
        return {}
