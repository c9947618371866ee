BEGIN TRANSACTION;
CREATE TABLE jobs (
	job_id VARCHAR NOT NULL,
	state VARCHAR(16) NOT NULL,
	seconds DOUBLE NOT NULL,
	cancel_requested BOOLEAN NOT NULL,
	created_at DATETIME NOT NULL,
	updated_at DATETIME NOT NULL,
	spec TEXT NOT NULL,
	CONSTRAINT pk_jobs PRIMARY KEY (job_id)
);
INSERT INTO "jobs" VALUES('20260301-120000-3fa9','running',12.5,0,'2026-03-01 12:00:00.000000','2026-03-01 12:00:01.000000','{"version":1,"name":"resnet-int8","model":"/modèles/réseau.onnx","data":{"validation":{"file":"/data/v.npz","rows":[0,5000],"target":"labels"},"calibration":null,"training":null,"holdout":{"file":"/data/h.npz","rows":null,"target":"labels"}},"metrics":["auto"],"constraints":[{"metric":"top1","max_drop":0.01,"relative":true,"at_least":null,"at_most":null,"confidence":0.95}],"objectives":["latency"],"space":"int8","strategy":"auto","budget":{"trials":7,"seconds":900.0,"parallel":1,"threads":null,"trial_seconds":600.0,"memory_gb":null},"stop":"budget","early_stopping":true,"target":{"runtime":"onnxruntime-cpu","batch":1,"threads":1},"seed":0}');
CREATE TABLE trials (
	job_id VARCHAR NOT NULL,
	number INTEGER NOT NULL,
	state VARCHAR(16) NOT NULL,
	plan_digest VARCHAR NOT NULL,
	feasible BOOLEAN NOT NULL,
	violation DOUBLE,
	speedup DOUBLE,
	size_bytes DOUBLE,
	created_at DATETIME NOT NULL,
	finished_at DATETIME,
	result TEXT NOT NULL,
	CONSTRAINT pk_trials PRIMARY KEY (job_id, number),
	CONSTRAINT fk_trials_job_id FOREIGN KEY(job_id) REFERENCES jobs (job_id)
);
INSERT INTO "trials" VALUES('20260301-120000-3fa9',0,'complete','d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0',1,-0.005,1.8,281234.0,'2026-03-01 12:00:02.000000','2026-03-01 12:00:02.000000','{"number":0,"state":"complete","assignment":{"conv1":"int8","fc":"float"},"plan_digest":"d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0d0","measurements":{"top1":{"metric":"top1","value":0.921,"unit":"","direction":"higher","stderr":0.004,"samples":5000,"seconds":3.25,"target":"onnxruntime-cpu"},"size_bytes":{"metric":"size_bytes","value":281234.0,"unit":"bytes","direction":"lower","stderr":null,"samples":1,"seconds":0.0,"target":""}},"verdicts":[{"metric":"top1","drop":0.002,"lower":-0.001,"upper":0.005,"confidence":0.95,"decision":"met","violation":-0.005,"split":"validation","samples":5000,"rule":"paired"}],"speedup":{"value":1.8,"lower":1.7,"upper":1.9,"confidence":0.95},"notes":["conv1 has it''s “quotes”"],"error":null,"artefact":null,"timings":{"build":1.25,"accuracy":2.0},"attempt":0}');
INSERT INTO "trials" VALUES('20260301-120000-3fa9',1,'stopped','d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1',0,0.07,NULL,NULL,'2026-03-01 12:00:03.000000','2026-03-01 12:00:03.000000','{"number":1,"state":"stopped","assignment":{"conv1":"int4","fc":"int4"},"plan_digest":"d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1","measurements":{"top1":{"metric":"top1","value":0.84,"unit":"","direction":"higher","stderr":0.004,"samples":320,"seconds":3.25,"target":"onnxruntime-cpu"}},"verdicts":[{"metric":"top1","drop":0.08,"lower":0.06,"upper":0.1,"confidence":0.95,"decision":"missed","violation":0.07,"split":"validation","samples":320,"rule":"paired"}],"speedup":null,"notes":[],"error":null,"artefact":null,"timings":{"build":1.0},"attempt":1}');
INSERT INTO "trials" VALUES('20260301-120000-3fa9',2,'failed','d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2',0,NULL,NULL,NULL,'2026-03-01 12:00:04.000000','2026-03-01 12:00:04.000000','{"number":2,"state":"failed","assignment":{"conv1":"int8","fc":"int8"},"plan_digest":"d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2","measurements":{},"verdicts":[],"speedup":null,"notes":[],"error":{"type":"TrialError","message":"the session could not be made","step":"session"},"artefact":null,"timings":{"failed":0.5},"attempt":2}');
INSERT INTO "trials" VALUES('20260301-120000-3fa9',3,'running','d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3',0,NULL,NULL,NULL,'2026-03-01 12:00:05.000000',NULL,'{"number":3,"state":"running","assignment":{"conv1":"float","fc":"int8"},"plan_digest":"d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3","measurements":{},"verdicts":[],"speedup":null,"notes":[],"error":null,"artefact":null,"timings":{},"attempt":3}');
CREATE INDEX ix_trials_job_id_state ON trials (job_id, state);
CREATE INDEX ix_trials_job_id_plan_digest ON trials (job_id, plan_digest);
COMMIT;
