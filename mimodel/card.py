"""README.md of an artifact, for people."""

from mimodel.artifact import ArtifactSpec

_REFLECTANCE = "reflectance (unitless, 10 m a pixel, NaN where there is no data)"


def model_card(spec: ArtifactSpec, evaluation: str = "") -> str:
    """README.md of an artifact: what it reads, where it comes from, what it is good for."""
    pixels = spec.provenance.get("pixels", _REFLECTANCE)
    height, width = spec.encoder.image_size
    learnt = [
        "Learnt from pairs of images by mutual information (Sanchez, Serrurier, Ortner 2019).",
        "Shared is what both images of a pair have in common, such as the place at two dates;",
        "exclusive is what one of them has alone.",
    ]
    if spec.alpha is None:
        learnt = ["A variational autoencoder: its one representation goes by the name of shared."]
    lines = [
        f"# {spec.name}",
        "",
        *learnt,
        "",
        f"- reads: {', '.join(spec.bands)} as {pixels}, {height} x {width} pixels",
        f"- gives: {', '.join(f'{n} ({d})' for n, d in spec.representations.items())}",
        *[f"- head {name}: {', '.join(head.classes)}" for name, head in spec.heads.items()],
        *[
            f"- {name.replace('_', ' ')}: {value}"
            for name, value in spec.provenance.items()
            if name != "pixels"
        ],
        "",
    ]
    if pixels == _REFLECTANCE:
        lines.append(
            "Contains modified Copernicus Sentinel data where it was trained on real products."
        )
    return "\n".join(lines) + "\n" + (f"\n{evaluation}\n" if evaluation else "")
