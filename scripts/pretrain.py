"""The same as `hf-ssl pretrain`."""

from hf_ssl.commands import program

if __name__ == "__main__":
    program("pretrain")
