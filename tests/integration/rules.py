"""Access rules (ACLs) of a real broker: put there and taken away so that they hold when the call returns."""

from __future__ import annotations

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported, not by its __all__
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from promptbus.rights import Right
from tests.integration.system import eventually

_WAIT_S = 20.0


class Rules:
    """The controller acknowledges a rule before the broker knows it: here both have happened."""

    def __init__(self, admin: AdminClient) -> None:
        self._admin = admin

    def put(self, user: str, *rights: Right, permission: str = "ALLOW") -> None:
        """From now on."""
        bindings = [_binding(user, right, permission) for right in rights]
        for future in self._admin.create_acls(bindings).values():
            future.result(_WAIT_S)
        eventually("the broker knows the rules", lambda: all(map(self._known, bindings)))

    def take_away(self, user: str, *rights: Right, permission: str = "ALLOW") -> None:
        """From now on. Each of them must have been there."""
        bindings = [_binding(user, right, permission) for right in rights]
        for future in self._admin.delete_acls([_filter(binding) for binding in bindings]).values():
            assert future.result(_WAIT_S), "there was such a rule"
        eventually("the broker has forgotten the rules", lambda: not any(map(self._known, bindings)))

    def _known(self, binding: AclBinding) -> bool:
        return bool(self._admin.describe_acls(_filter(binding)).result(_WAIT_S))


def _binding(user: str, right: Right, permission: str) -> AclBinding:
    return AclBinding(
        ResourceType[right.kind.upper().replace("-", "_")],
        right.name,
        ResourcePatternType.LITERAL,
        f"User:{user}",
        "*",
        AclOperation[right.operation],
        AclPermissionType[permission],
    )


def _filter(binding: AclBinding) -> AclBindingFilter:
    return AclBindingFilter(
        binding.restype,
        binding.name,
        binding.resource_pattern_type,
        binding.principal,
        binding.host,
        binding.operation,
        binding.permission_type,
    )
