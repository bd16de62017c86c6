"""The same as `hf-ssl publish_metric`."""

from hf_ssl.commands import program

if __name__ == "__main__":
    program("publish_metric")
