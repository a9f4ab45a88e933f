import { decodeMessage, encodeMessage, make, Interaction, UserId, SearchPhrase,Timestamp,MessageId, Metadata, messageId,canonicalTimestamp } from "/work/main/src/services/Interaction.ts"
import { Schema, Either } from "effect"
const i = make({user_id:"u-42",event_type:"search",search_phrase:"wireless headphones",occurred_at:"2026-02-10T12:34:56.789Z",metadata:{device:"ios",channel:"app",n:3,session_id:"abcdef"}})
const bench = (name:string,f:()=>unknown)=>{ for(let k=0;k<20000;k++) f(); let best=1e9; for(let r=0;r<7;r++){const t=performance.now(); for(let k=0;k<20000;k++) f(); best=Math.min(best,(performance.now()-t)/20)} console.log(name,best.toFixed(2),"µs")}
const b=(n:string,s:any,v:unknown)=>{const d=Schema.decodeUnknownEither(s); bench(n,()=>d(v))}
const body=encodeMessage(i)
bench("decodeMessage",()=>decodeMessage(body,4e12))
bench("parse",()=>JSON.parse(new TextDecoder().decode(body)))
const td=new TextDecoder("utf-8",{fatal:true}); bench("textdecode",()=>td.decode(body)); bench("buffer tostring",()=>Buffer.from(body.buffer,body.byteOffset,body.byteLength).toString())
bench("messageId",()=>messageId(i))
bench("canonical",()=>canonicalTimestamp(i.occurred_at))
b("user",UserId,i.user_id); b("phrase",SearchPhrase,i.search_phrase); b("ts",Timestamp,i.occurred_at); b("mid",MessageId,i.message_id); b("meta",Metadata,i.metadata); b("String",Schema.String,"x")
b("rec string",Schema.Record({key:Schema.String,value:Schema.Union(Schema.String, Schema.Number, Schema.Boolean)}),i.metadata)
const V=Schema.declare((u:unknown):u is string|number|boolean => typeof u==="string"||typeof u==="number"||typeof u==="boolean")
b("rec declare",Schema.Record({key:Schema.String,value:V}),i.metadata)
b("rec unknown",Schema.Record({key:Schema.String,value:Schema.Unknown}),i.metadata)
b("struct4",Schema.Struct({user_id:Schema.String,event_type:Schema.Literal("search"),search_phrase:Schema.String,message_id:Schema.String}),i)
bench("stringify size",()=>Buffer.byteLength(JSON.stringify(i.metadata)))
b("optDefault",Schema.Struct({product_id:Schema.optionalWith(Schema.Null,{default:()=>null})}),i)
