"""IISAN-Versa: the side network over encoders that differ in depth and width, on cached hidden states (`iisan`).

    python run_IISAN_versa.py --dataset ../../../Dataset/Scientific --text_encoder meta-llama/Meta-Llama-3-8B

The side network reads six evenly spaced layers of each encoder, and the inter-modal tower projects the wider encoder's
states down. A decoder's states are read at a title's last token; --text_pooling mean averages over all tokens, as the
released programs do. Use --item_tower text or image for one modality, under the same objective and sequence length.
"""

from transrec.runner import adapt

if __name__ == "__main__":
    adapt(
        "iisan",
        item_tower="multimodal",
        objective="in_batch",
        max_seq_len=10,
        side_layers=6,
        narrow_end=True,
        cached="yes",
        state_dtype="fp16",
    )
