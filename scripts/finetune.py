"""The same as `hf-ssl finetune`."""

from hf_ssl.commands import program

if __name__ == "__main__":
    program("finetune")
