"""The Go server's service, as a router tells of the models of all its replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from gpupipe.errors import GpupipeError
from gpupipe.serve.grpc import monolithic_pb2 as pb
from gpupipe.serve.grpc.handlers import only
from gpupipe.serve.grpc.server import MONOLITHIC
from gpupipe.serve.grpc.statuses import told
from gpupipe.serve.refusals import Gone
from gpupipe.serve.router.board import ANSWER_SECONDS, Board
from gpupipe.serve.router.replica import MODEL, Replica


class Models:
    """The methods of `monolithic.MonolithicService` but for the batches, as `handlers.method_of` takes them.

    Args:
        board: of the router.
    """

    def __init__(self, board: Board) -> None:
        self._board = board

    async def ListModels(self, requests: AsyncIterator[Any]) -> Any:
        """Every model, as the replica tells of it that has it loaded, with the requests of all."""
        answers = await self._every("ListModels", await only(requests))
        return pb.ListModelsResponse(models=_together([model for each in answers for model in each.models]))

    async def GetModelStats(self, requests: AsyncIterator[Any]) -> Any:
        """Likewise."""
        answers = await self._every("GetModelStats", await only(requests))
        return pb.GetModelStatsResponse(models=_together([model for each in answers for model in each.models]))

    async def LoadModel(self, requests: AsyncIterator[Any]) -> Any:
        """Load a model on the replica that its next session would be sent to."""
        request = await only(requests)
        try:
            for replica in self._board.turns(MODEL + request.model_id):
                try:
                    return await self._ask(replica, "LoadModel", request, None)
                except (Gone, grpc.aio.AioRpcError):
                    continue
            raise Gone("none of the replicas answers", remedy="ask again later")
        except GpupipeError as error:
            return pb.LoadModelResponse(error=told(error), gpu_id=-1)

    async def UnloadModel(self, requests: AsyncIterator[Any]) -> Any:
        """Release a model on every replica that has it; as one of them answers, if any has succeeded such a one."""
        answers = await self._every("UnloadModel", await only(requests))
        return max(answers, key=lambda each: each.success)

    async def Health(self, requests: AsyncIterator[Any]) -> Any:
        """Of all replicas together."""
        answers = await self._every("Health", await only(requests))
        return pb.HealthResponse(
            healthy=any(each.healthy for each in answers),
            loaded_models=sum(each.loaded_models for each in answers),
            max_models=max(each.max_models for each in answers),
            gpu_ids=[number for each in answers for number in each.gpu_ids],
            gpu_memory_used_gb=[used for each in answers for used in each.gpu_memory_used_gb],
        )

    async def _every(self, name: str, request: Any) -> list[Any]:
        """The answers of all replicas that give one, of one at least.

        Raises:
            Gone: none does.
        """
        asked = (self._ask(each, name, request, ANSWER_SECONDS) for each in self._board.up)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        failed = [each for each in answers if isinstance(each, BaseException)]
        for each in failed:
            if not isinstance(each, (Gone, grpc.aio.AioRpcError)):
                raise each
        if len(failed) == len(answers):
            raise Gone("none of the replicas answers", remedy="ask again later")
        return [each for each in answers if not isinstance(each, BaseException)]

    async def _ask(self, replica: Replica, name: str, request: Any, seconds: float | None) -> Any:
        call = replica.channel.unary_unary(
            f"/{MONOLITHIC.full_name}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(MONOLITHIC.methods_by_name[name].output_type).FromString,
        )
        return await call(request, metadata=self._board.metadata, timeout=seconds)


def _together(models: list[Any]) -> list[Any]:
    """Each model once: as it is told of where it is loaded, with what has been asked of all."""
    found: dict[str, Any] = {}
    asked: dict[str, int] = {}
    for model in models:
        asked[model.model_id] = asked.get(model.model_id, 0) + model.request_count
        if model.model_id not in found or (model.loaded and not found[model.model_id].loaded):
            found[model.model_id] = model
    for name, model in found.items():
        model.request_count = asked[name]
    return list(found.values())
