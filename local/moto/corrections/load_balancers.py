"""A load balancer has an interface in each of its subnets, which goes a while after it and holds group and subnet until then.

moto's have none, so a security group or a subnet could be deleted under them. Source: Elastic Load Balancing API Reference,
DeleteLoadBalancer of both versions; Amazon EC2 User Guide, "Requester-managed network interfaces" (description `ELB …`,
requester amazon-elb); AWS's advice on VPCs that cannot be deleted names these interfaces.
"""

from __future__ import annotations

from typing import Any

import later
from moto.ec2.models import ec2_backends
from moto.elb.models import ELBBackend
from moto.elbv2.models import ELBv2Backend

# Users report half a minute to some minutes.
_INTERFACES_GO = 60


def apply() -> None:
    """Has interfaces come and go with both generations."""
    create_classic, delete_classic = ELBBackend.create_load_balancer, ELBBackend.delete_load_balancer
    create, delete = ELBv2Backend.create_load_balancer, ELBv2Backend.delete_load_balancer

    def create_load_balancer_classic(self: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        balancer = create_classic(self, name, *args, **kwargs)
        _attach(self, f"ELB {name}", balancer.subnets or [], balancer.security_groups or [])
        return balancer

    def delete_load_balancer_classic(self: Any, load_balancer_name: str) -> None:
        if load_balancer_name in self.load_balancers:
            _detach(self, f"ELB {load_balancer_name}")
        delete_classic(self, load_balancer_name)

    def create_load_balancer(self: Any, *args: Any, **kwargs: Any) -> Any:
        balancer = create(self, *args, **kwargs)
        subnets = [subnet.id for subnet in balancer.subnets]
        _attach(self, _described(balancer.arn), subnets, balancer.security_groups or [])
        return balancer

    def delete_load_balancer(self: Any, arn: str) -> None:
        if arn in self.load_balancers:
            _detach(self, _described(arn))
        delete(self, arn)

    ELBBackend.create_load_balancer = create_load_balancer_classic
    ELBBackend.delete_load_balancer = delete_load_balancer_classic
    ELBv2Backend.create_load_balancer = create_load_balancer
    ELBv2Backend.delete_load_balancer = delete_load_balancer


def _described(arn: str) -> str:
    """`ELB net/<name>/<id>`."""
    return f"ELB {arn.split(':loadbalancer/')[-1]}"


def _attach(backend: Any, description: str, subnets: list[str], groups: list[str]) -> None:
    ec2 = ec2_backends[backend.account_id][backend.region_name]
    for subnet in subnets:
        interface = ec2.create_network_interface(subnet, [], group_ids=groups, description=description)
        interface.status, interface.requester_managed, interface.requester_id = "in-use", True, "amazon-elb"


def _detach(backend: Any, description: str) -> None:
    ec2 = ec2_backends[backend.account_id][backend.region_name]

    def go() -> None:
        for identity, interface in list(ec2.enis.items()):
            if interface.description == description:
                ec2.enis.pop(identity, None)

    later.after(_INTERFACES_GO, go)
