# A client of S3 by other people's code: ENDPOINT KEY SECRET create|put|fetch BUCKET …
import json, os, sys
import boto3
from botocore.config import Config

endpoint, key, secret, what, bucket, *rest = sys.argv[1:]
s3 = boto3.client(
    "s3", endpoint_url=endpoint, aws_access_key_id=key, aws_secret_access_key=secret, region_name="us-east-1",
    config=Config(signature_version="s3v4", s3={"addressing_style": "path"}, proxies={}),
)
if what == "create":
    s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
elif what == "put":
    s3.put_object(Bucket=bucket, Key=rest[0], Body=rest[1].encode())
elif what == "fetch":
    told = []
    for one in s3.list_objects_v2(Bucket=bucket).get("Contents", []):
        name = one["Key"]
        answer = s3.get_object(Bucket=bucket, Key=name)
        with open(os.path.join(rest[0], name.rsplit("/", 1)[-1]), "wb") as file:
            for piece in answer["Body"].iter_chunks(1 << 20):
                file.write(piece)
        head = s3.head_object(Bucket=bucket, Key=name)
        versions = s3.list_object_versions(Bucket=bucket, Prefix=name).get("Versions", [])
        told.append({
            "name": name, "bytes": one["Size"], "metadata": head["Metadata"], "type": head["ContentType"],
            "versions": len([v for v in versions if v["Key"] == name]),
            "lock": head.get("ObjectLockMode", ""), "until": str(head.get("ObjectLockRetainUntilDate", "")),
        })
    print(json.dumps(told))
