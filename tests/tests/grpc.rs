//! What a client finds that has no stubs of ours: health and reflection, as `grpcurl` and Kubernetes' probes ask.

use anyhow::{Context as _, Result, ensure};
use prost::Message as _;
use prost_types::FileDescriptorProto;
use remora_proto::client::{AgentAddress, connect};
use remora_tests::{agent::TestAgent, node::Node};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

fn channel(agent: &TestAgent<'_>) -> Result<Channel> {
    let address = AgentAddress::Unix(agent.socket());
    Ok(agent.block_on(connect(&address))?)
}

fn reflected(
    agent: &TestAgent<'_>,
    channel: &Channel,
    ask: MessageRequest,
) -> Result<MessageResponse> {
    let mut client = ServerReflectionClient::new(channel.clone());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(ask),
    };
    agent.block_on(async {
        let asked = tokio_stream::once(request);
        let mut answers = client.server_reflection_info(asked).await?.into_inner();
        let answer = answers.message().await?.context("no answer")?;
        answer.message_response.context("an empty answer")
    })
}

#[test]
fn each_service_is_healthy_and_a_service_that_is_none_is_not_found() -> Result<()> {
    let node = Node::new()?;
    let agent = TestAgent::start(&node)?;
    let mut client = HealthClient::new(channel(&agent)?);
    let mut check = |service: &str| {
        let service = service.to_owned();
        agent.block_on(client.check(HealthCheckRequest { service }))
    };
    for service in [
        "",
        "remora.v1.Capture",
        "remora.v1.Node",
        "remora.v1.Uploads",
    ] {
        let answer = check(service)?.into_inner();
        ensure!(
            answer.status() == ServingStatus::Serving,
            "{service}: {answer:?}"
        );
    }
    let refused = check("remora.v1.Nobody").err().context("it was taken")?;
    ensure!(refused.code() == Code::NotFound, "{refused}");
    Ok(())
}

#[test]
fn reflection_tells_the_services_and_their_calls() -> Result<()> {
    let node = Node::new()?;
    let agent = TestAgent::start(&node)?;
    let channel = channel(&agent)?;
    let ask = MessageRequest::ListServices(String::new());
    let MessageResponse::ListServicesResponse(listed) = reflected(&agent, &channel, ask)? else {
        anyhow::bail!("not a list");
    };
    let names: Vec<_> = listed
        .service
        .iter()
        .map(|service| service.name.as_str())
        .collect();
    for wanted in [
        "remora.v1.Capture",
        "remora.v1.Node",
        "remora.v1.Uploads",
        "grpc.health.v1.Health",
    ] {
        ensure!(names.contains(&wanted), "{wanted} is not in {names:?}");
    }
    let ask = MessageRequest::FileContainingSymbol("remora.v1.Capture".to_owned());
    let MessageResponse::FileDescriptorResponse(described) = reflected(&agent, &channel, ask)?
    else {
        anyhow::bail!("not a description");
    };
    let mut calls = Vec::new();
    for file in &described.file_descriptor_proto {
        let file = FileDescriptorProto::decode(file.as_slice())?;
        let services = file
            .service
            .into_iter()
            .filter(|service| service.name() == "Capture");
        calls.extend(services.flat_map(|service| service.method));
    }
    let calls: Vec<_> = calls.iter().map(|call| call.name()).collect();
    for wanted in ["Start", "Stop", "Get", "List", "Watch", "Stream"] {
        ensure!(calls.contains(&wanted), "{wanted} is not in {calls:?}");
    }
    let ask = MessageRequest::FileContainingSymbol("remora.v1.Nobody".to_owned());
    ensure!(
        reflected(&agent, &channel, ask).is_err(),
        "a symbol that is none was described"
    );
    Ok(())
}
