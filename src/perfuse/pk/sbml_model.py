"""A small writer of SBML Level 3 Version 2 core over libsbml: one call per element, every call checked.

Identifiers are made here from any name, so that a name taken from a file can never become SBML syntax.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from perfuse.errors import PerfuseError

UNITS: Mapping[str, tuple[tuple[str, int, int, float], ...]] = {
    "mg": (("gram", 1, -3, 1.0),),
    "h": (("second", 1, 0, 3600.0),),
    "per_h": (("second", -1, 0, 3600.0),),
    "L_per_h": (("litre", 1, 0, 1.0), ("second", -1, 0, 3600.0)),
    "mg_per_h": (("gram", 1, -3, 1.0), ("second", -1, 0, 3600.0)),
    "mg_per_L": (("gram", 1, -3, 1.0), ("litre", -1, 0, 1.0)),
}
"""Unit definitions by identifier: (base unit, exponent, power of ten, multiplier)."""

# XML 1.0 allows these characters; everything else would make the file unreadable.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LONGEST_NAME = 200
_FORMULA_WORDS = frozenset(
    (
        "time",
        "avogadro",
        "pi",
        "exponentiale",
        "true",
        "false",
        "inf",
        "infinity",
        "nan",
        "notanumber",
        "delay",
        "rateof",
    )
)
"""What a formula would read as something else than an identifier."""


def libsbml() -> Any:
    """The libsbml module.

    Raises:
        PerfuseError: when it is not installed.
    """
    try:
        import libsbml as module
    except ImportError:
        raise PerfuseError("SBML export needs python-libsbml; install it with: pip install 'perfuse[export]'") from None
    return module


def plain_text(name: str) -> str:
    """A name as SBML may show it: no control characters, not too long; libsbml lets what looks like an entity pass."""
    return _NOT_XML.sub("", name[:_LONGEST_NAME]).replace("&", "&amp;")


class SbmlModel:
    """One SBML model in the making. Identifiers given as ``wanted`` are cleaned and made unique.

    Args:
        name: What the model is called.
    """

    def __init__(self, name: str) -> None:
        self.lib = libsbml()
        self.document = self.lib.SBMLDocument(3, 2)
        self.model = self.document.createModel()
        self._used: set[str] = set()
        self._set(self.model, Id=self.identifier(name or "model"), Name=plain_text(name) or "model")
        for unit, parts in UNITS.items():
            self._unit(unit, parts)
        self._set(self.model, SubstanceUnits="mg", ExtentUnits="mg", TimeUnits="h", VolumeUnits="litre")

    def identifier(self, wanted: str) -> str:
        """A valid identifier (SId) that is not in use: letters, digits and underscores of ``wanted``."""
        stem = re.sub(r"[^A-Za-z0-9_]", "_", wanted[:_LONGEST_NAME])
        if not re.match(r"[A-Za-z_]", stem):
            stem = f"_{stem}"
        if stem.lower() in _FORMULA_WORDS:
            stem += "_"
        out, n = stem, 2
        while out in self._used:
            out, n = f"{stem}_{n}", n + 1
        self._used.add(out)
        return out

    def compartment(self, wanted: str, name: str, size_l: float) -> str:
        """A compartment of constant volume."""
        item, out = self.model.createCompartment(), self.identifier(wanted)
        self._set(item, Id=out, Name=plain_text(name), Constant=True, SpatialDimensions=3, Size=size_l, Units="litre")
        return out

    def species(self, wanted: str, name: str, compartment: str, *, is_amount: bool) -> str:
        """Drug in a compartment, none at first; in formulas it stands for its amount, or for its concentration."""
        item, out = self.model.createSpecies(), self.identifier(wanted)
        self._set(
            item, Id=out, Name=plain_text(name), Compartment=compartment, InitialAmount=0.0, SubstanceUnits="mg",
            HasOnlySubstanceUnits=is_amount, BoundaryCondition=False, Constant=False,
        )  # fmt: skip
        return out

    def parameter(self, wanted: str, name: str, value: float | None, unit: str, *, constant: bool = True) -> str:
        """A parameter; without a value a rule or an initial assignment gives it."""
        item, out = self.model.createParameter(), self.identifier(wanted)
        self._set(item, Id=out, Name=plain_text(name), Units=unit, Constant=constant)
        if value is not None:
            self._set(item, Value=value)
        return out

    def rule(self, wanted: str, name: str, formula: str, unit: str) -> str:
        """A quantity that always equals a formula."""
        out = self.parameter(wanted, name, None, unit, constant=False)
        self._set(self.model.createAssignmentRule(), Variable=out, Math=self._math(formula))
        return out

    def initially(self, variable: str, formula: str) -> None:
        """Give a variable its value at the start."""
        self._set(self.model.createInitialAssignment(), Symbol=variable, Math=self._math(formula))

    def reaction(
        self, wanted: str, name: str, source: str | None, target: str | None, formula: str,
        modifiers: Iterable[str] = (), *, reversible: bool = False,
    ) -> None:  # fmt: skip
        """Drug that moves from a species to another at ``formula`` mg/h."""
        item = self.model.createReaction()
        self._set(item, Id=self.identifier(wanted), Name=plain_text(name), Reversible=reversible)
        for species, create in ((source, item.createReactant), (target, item.createProduct)):
            if species is not None:
                self._set(create(), Species=species, Stoichiometry=1.0, Constant=True)
        for species in modifiers:
            self._set(item.createModifier(), Species=species)
        self._set(item.createKineticLaw(), Math=self._math(formula))

    def event(self, wanted: str, name: str, at: str, assignments: Mapping[str, str]) -> None:
        """Set variables to formulas once, when time reaches the formula ``at``.

        Formulas are worked out when the event is executed, one event after another, so that two events that add to
        one variable at one time both count.
        """
        item = self.model.createEvent()
        self._set(item, Id=self.identifier(wanted), Name=plain_text(name), UseValuesFromTriggerTime=False)
        trigger = item.createTrigger()
        self._set(trigger, InitialValue=False, Persistent=True, Math=self._math(f"time >= {at}"))
        for variable, formula in assignments.items():
            self._set(item.createEventAssignment(), Variable=variable, Math=self._math(formula))

    def note(self, text: str) -> None:
        """Say something to the reader of the model."""
        escaped = _NOT_XML.sub("", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        body = f'<body xmlns="http://www.w3.org/1999/xhtml"><p>{escaped}</p></body>'
        self._check(self.model.setNotes(body), "notes")

    def to_text(self) -> str:
        """The document, checked by libsbml's own rules, units included.

        Raises:
            PerfuseError: for a document that breaks a rule; that is a fault here, not of the model.
        """
        if self.document.checkConsistency():
            errors = [self.document.getError(i) for i in range(self.document.getNumErrors())]
            for error in [e for e in errors if e.getSeverity() >= self.lib.LIBSBML_SEV_ERROR]:
                raise PerfuseError(f"SBML would not be valid: {' '.join(error.getMessage().split())[:300]}")
        return self.lib.writeSBMLToString(self.document)

    def _unit(self, unit: str, parts: tuple[tuple[str, int, int, float], ...]) -> None:
        definition = self.model.createUnitDefinition()
        self._used.add(unit)
        self._set(definition, Id=unit)
        for kind, exponent, scale, multiplier in parts:
            item = definition.createUnit()
            code = getattr(self.lib, f"UNIT_KIND_{kind.upper()}")
            self._set(item, Kind=code, Exponent=exponent, Scale=scale, Multiplier=multiplier)

    def _math(self, formula: str) -> Any:
        tree = self.lib.parseL3Formula(formula)
        if tree is None:
            raise PerfuseError(f"SBML formula is not understood: {self.lib.getLastParseL3Error()}")
        return tree

    def _set(self, item: Any, **values: object) -> None:
        for name, value in values.items():
            self._check(getattr(item, f"set{name}")(value), name)

    def _check(self, code: int, what: str) -> None:
        if code != self.lib.LIBSBML_OPERATION_SUCCESS:
            reason = self.lib.OperationReturnValue_toString(code)
            raise PerfuseError(f"SBML {what} cannot be set: {' '.join(str(reason).split())}")
