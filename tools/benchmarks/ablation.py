"""What each part of a fitted plan adds: the plan again, with one part taken away at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...passes.recipe import Recipe
from ...passes.surrogates import Form, Wish

WITHOUT_FOLD: Mapping[Form, Form] = {
    "affine + folded": "affine",
    "affine + folded + context": "affine + context",
}
WITHOUT_CONTEXT: Mapping[Form, Form] = {
    "affine + context": "affine",
    "affine + folded + context": "affine + folded",
}


def ablations(recipe: Recipe, mapping: Mapping[Wish, Form]) -> dict[str, Recipe]:
    """The recipe, and variants of it by what they lack; those that change nothing are left out.

    `mapping` tells the plain map that may stand in the place of a folded surrogate.
    """
    healing = recipe.healing
    unfolded = {wish: WITHOUT_FOLD.get(wish.form, wish.form) for wish in recipe.wishes}
    unfolded |= {wish: mapping[wish] for wish in recipe.wishes if wish.form == "folded"}
    plain = {wish: WITHOUT_CONTEXT.get(wish.form, wish.form) for wish in recipe.wishes}
    found = {
        "all": recipe,
        "no bias": replace(recipe, healing=replace(healing, bias=False)),
        "no ridge": replace(recipe, healing=replace(healing, ridge=False)),
        "no row weights": replace(recipe, healing=replace(healing, emphasis=1.0, refit=1.0)),
        "no fold": _formed(recipe, unfolded),
        "no context": _formed(recipe, plain),
        "no refit": replace(recipe, healing=replace(healing, refit=None)),
    }
    seen: list[tuple[object, object]] = []
    for name, variant in list(found.items()):
        key = variant.wishes, variant.healing
        if key in seen:
            del found[name]
        seen.append(key)
    return found


def _formed(recipe: Recipe, forms: Mapping[Wish, Form]) -> Recipe:
    return replace(recipe, wishes=tuple(replace(w, form=forms[w]) for w in recipe.wishes))
