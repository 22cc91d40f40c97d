//! The methods of the protocol. Those about the connection itself are served by `peer`, the others are registered here.

use super::{call::Call, completion_stream, envelope::Params, error::ResponseError, model_load, types::*};
use crate::actors::{Answer, Question, Runtime};
use crate::config::Limits;
use futures_util::future::BoxFuture;
use jsonrpsee_core::server::{ConnectionId, Extensions, MethodCallback, MethodResponse, Methods, RpcModule};
use jsonrpsee_types::Id;
use serde::{Serialize, de::DeserializeOwned};
use std::future::Future;

/// Methods that `peer` serves.
pub const CONNECTION_METHODS: [&str; 3] = ["initialize", "shutdown", "cancel"];

/// The methods of one runtime. All transports share them.
#[derive(Clone)]
pub struct Api {
    methods: Methods,
    limits: Limits,
}

impl Api {
    pub fn new(runtime: Runtime) -> Self {
        let limits = *runtime.limits();
        Self { methods: Self::registry(runtime).into(), limits }
    }

    pub(super) fn registry(runtime: Runtime) -> RpcModule<Runtime> {
        let mut methods = RpcModule::new(runtime);

        completion(&mut methods, "infill", |params: InfillParams, rules| params.completion(rules));
        completion(&mut methods, "complete", |params: CompleteParams, rules| params.completion(rules));
        completion(&mut methods, "chat", |params: ChatParams, rules| params.completion(rules));

        method(&mut methods, "tokenize", |runtime, params: TokenizeParams, _| async move {
            let rules = rules(&runtime);
            rules.check_text_bytes([("text", params.text.len())])?;
            match runtime.ask(&rules.model(params.model), Question::Tokenize(params.text)).await? {
                Answer::Tokens(tokens) => Ok(TokenizeResult { tokens }),
                other => Err(mismatch(&other)),
            }
        });
        method(&mut methods, "detokenize", |runtime, params: DetokenizeParams, _| async move {
            match runtime.ask(&rules(&runtime).model(params.model), Question::Detokenize(params.tokens)).await? {
                Answer::Text(text) => Ok(DetokenizeResult { text }),
                other => Err(mismatch(&other)),
            }
        });
        method(&mut methods, "prompt/render", |runtime, mut params: RenderParams, _| async move {
            let rules = rules(&runtime);
            let model = rules.model(params.model.take());
            match runtime.ask(&model, Question::Render(params.into_prompt(rules)?)).await? {
                Answer::Rendered(rendered) => Ok(RenderResult::from(rendered)),
                other => Err(mismatch(&other)),
            }
        });

        method(&mut methods, "models/list", |runtime, _: NoParams, _| async move {
            Ok(ModelsResult::new(runtime.models().await, runtime.default_model()))
        });
        method(&mut methods, "models/show", |runtime, params: ModelNameParams, _| async move {
            let info = runtime.show(&params.model).await?;
            Ok(ModelInfoResult::new(params.model, info))
        });
        method(&mut methods, "models/load", |runtime, params: LoadParams, call| async move {
            let info = model_load::load(&runtime, &call, &params).await?;
            Ok(ModelInfoResult::new(params.model, info))
        });
        method(
            &mut methods,
            "models/unload",
            |runtime, params: ModelNameParams, _| async move { Ok(runtime.unload(&params.model).await?) },
        );
        method(&mut methods, "status", |runtime, _: NoParams, _| async move {
            Ok(StatusResult::new(runtime.status().await, runtime.default_model()))
        });
        methods
    }

    /// An API with other methods, for tests of the connection.
    #[cfg(test)]
    pub(super) fn with_methods(methods: impl Into<Methods>, limits: Limits) -> Self {
        Self { methods: methods.into(), limits }
    }

    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.methods.method_names().chain(CONNECTION_METHODS)
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Starts a call; `None` for an unknown method. `registry_id` replaces the peer's id, which the registry could not echo
    /// byte for byte.
    pub(super) fn call(&self, method: &str, registry_id: u64, params: Params, call: Call) -> Option<BoxFuture<'static, MethodResponse>> {
        let Some(MethodCallback::Async(callback)) = self.methods.method(method) else { return None };
        let params = jsonrpsee_types::Params::new(params.as_ref().map(|params| params.get())).into_owned();
        let mut extensions = Extensions::new();
        extensions.insert(call);
        Some(callback(Id::Number(registry_id), params, ConnectionId(0), usize::MAX, extensions))
    }
}

/// Registers a method that does not stream. A cancel drops its future.
pub(super) fn method<P, R, F, W>(methods: &mut RpcModule<Runtime>, name: &'static str, work: F)
where
    P: DeserializeOwned + Send + 'static,
    R: Serialize + Clone + Send + 'static,
    F: Fn(Runtime, P, Call) -> W + Copy + Send + Sync + 'static,
    W: Future<Output = Result<R, ResponseError>> + Send + 'static,
{
    register(methods, name, move |runtime, params, call: Call| async move {
        let params = parse_params::<P>(&params)?;
        call.clone().unless_cancelled(work(runtime, params, call)).await
    });
}

/// Registers a completion method. A cancel reports how many tokens were computed.
fn completion<P, F>(methods: &mut RpcModule<Runtime>, name: &'static str, validate: F)
where
    P: DeserializeOwned + Send + 'static,
    F: Fn(P, ParamRules<'_>) -> Result<Completion, ResponseError> + Copy + Send + Sync + 'static,
{
    register(methods, name, move |runtime, params, call| async move {
        let completion = validate(parse_params::<P>(&params)?, rules(&runtime))?;
        completion_stream::complete(&runtime, &call, completion).await
    });
}

fn register<R, F, W>(methods: &mut RpcModule<Runtime>, name: &'static str, handler: F)
where
    R: Serialize + Clone + Send + 'static,
    F: Fn(Runtime, jsonrpsee_types::Params<'static>, Call) -> W + Copy + Send + Sync + 'static,
    W: Future<Output = Result<R, ResponseError>> + Send + 'static,
{
    let callback = move |params, runtime: std::sync::Arc<Runtime>, mut extensions: Extensions| async move {
        let call = extensions.remove::<Call>().expect("inserted by `Api::call`");
        handler(Runtime::clone(&runtime), params, call).await
    };
    methods.register_async_method(name, callback).expect("each name is registered once");
}

fn rules(runtime: &Runtime) -> ParamRules<'_> {
    ParamRules { limits: runtime.limits(), default_model: runtime.default_model() }
}

fn mismatch(answer: &Answer) -> ResponseError {
    let kind = match answer {
        Answer::Tokens(_) => "tokens",
        Answer::Text(_) => "text",
        Answer::Rendered(_) => "a rendered prompt",
    };
    crate::actors::Error::Internal(format!("a worker answered with {kind}")).into()
}
